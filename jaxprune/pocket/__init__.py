"""A small language model that the project trains itself, and its world.

world, documents, tasks       facts, texts about them, and questions
tokenizer, batches, training  from texts to a trained model
scores, build, export         what it scores, and how it becomes a folder
shipped                       the model that the package holds"""
