"""What decides: frozen values and pure functions, the standard library only."""
