"""What tasks can do: one file per action. An action gets parameters and a context; it knows no broker."""
