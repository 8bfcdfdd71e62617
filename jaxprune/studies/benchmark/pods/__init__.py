"""What do the programs of this project cost on TPU pods that are not there?

Needs the extra `tpu`, whose compiler works ahead of time for named topologies;
no TPU is used. `programs` says what is compiled, `measure` compiles and reads
what the compiler says, `hlo` counts what moves, `page` writes the tables.
"""
