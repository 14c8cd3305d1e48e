"""Bytes on disk: weight shards, PEFT folders, training state and the record of a run.

Import from the module files: `shards` (`ShardReader`, `ShardWriter`, `read_size`), `adapter` (`read_adapter`,
`write_adapter`), `state` (`save_state`, `load_state`, `load_weights`, `find_last`), `run_record` (`read_run`,
`write_run`), `folder` and `atomic` (output that is whole or not there). `state` reads every kind of checkpoint through
`pth`, `zero` and `dcp`; all three read pickles as data (`pth_pickle`).
"""

__all__: list[str] = []
