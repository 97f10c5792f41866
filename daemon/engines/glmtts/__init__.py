"""GLM-TTS, from an upstream checkout and its ``ckpt/`` folder, which stay as they are.

engine.py is the engine; checkpoint.py looks at the files before anything is loaded; upstream.py imports and loads
upstream's code where it is; text.py stands before its normaliser; voices.py extracts what it needs of a recording and
keeps that; decoding.py watches its token loop; pronunciation.py is the user's own dictionary.

Nothing is imported here: the daemon reads checkpoint.py, and it must not import torch.
"""
