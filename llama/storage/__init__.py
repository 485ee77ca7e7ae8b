"""Files here and remote, the tensors in them, and which region of a weight a rank holds.

`files.py` lists and reads a folder, `tensor_files.py` maps the tensors of a file, and `sharding.py`
puts a whole weight together from shards in several files; `huggingface_names.py` has the names and
the order of rows in Hugging Face's. `pulled.py` finds the folder of a model that was pulled from a
hub, by the names of `model_names.py`.
"""
