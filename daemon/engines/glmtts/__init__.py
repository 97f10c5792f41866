"""GLM-TTS, from an unmodified upstream checkout and its ``ckpt/`` folder.

engine.py is the engine; checkpoint.py checks the files before anything is loaded; upstream.py imports and loads
upstream's code; front_end.py has texts prepared in processes of their own (text_process.py, with text_tasks.py between
the two), where text.py wraps upstream's normaliser; voices.py extracts and caches a recording's features;
token_watch.py observes its token loop; pronunciation.py is the user's dictionary; checks.py is for the doctor.
batch_engine.py is the engine for many jobs at once: llm_batch.py keeps a row of the language model for each, llama.py
computes the rows, and sampling.py draws their tokens; flow_batch.py is the flow model, batch_job.py a job's state.

Nothing is imported here: the doctor uses checkpoint.py and must not import torch.
"""
