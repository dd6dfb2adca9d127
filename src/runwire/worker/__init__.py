"""The write side: takes commands, runs actions, appends events. Never opens SQLite, keeps no state."""
