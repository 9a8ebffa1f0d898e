"""The one writer of a host as a process of its own, and the library to speak to it."""
