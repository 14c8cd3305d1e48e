"""Bytes on disk: weight shards, PEFT folders, training state and the record of a run.

Import from the module files: `shards` (`ShardReader`, `ShardWriter`, `read_size`), `adapter` (`read_adapter`,
`write_adapter`), `state` (`save_state`, `load_state`, `find_last`), `run_record` (`read_run`, `write_run`),
`folder` and `atomic` (output that is whole or not there).
"""

__all__: list[str] = []
