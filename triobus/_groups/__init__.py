"""How events get to handlers. It knows no store."""
