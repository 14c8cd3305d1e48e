"""Row formats: functions of a row, one file per kin; the table of names is `xtuner.dataset.FORMATS`."""

__all__ = ["agent", "column", "message", "moss", "plain", "preference", "token", "turn"]
