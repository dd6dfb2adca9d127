"""The read side: a projection of EVENTS and LOGS in SQLite, one file per adapter, rebuilt whenever it is gone."""
