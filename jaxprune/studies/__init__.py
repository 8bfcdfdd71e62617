"""One folder a study: `measure`, then `summary`, then `page`."""
