"""One file for each part of the host; none imports another, the subprocess gate aside."""
