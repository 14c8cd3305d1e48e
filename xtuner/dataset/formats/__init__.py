"""Row formats: functions `row -> Conversation`, one file per kin; the table of names is `xtuner.dataset.FORMATS`."""

__all__ = ["agent", "column", "message", "plain", "turn"]
