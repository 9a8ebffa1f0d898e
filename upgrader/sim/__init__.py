"""A host in memory, under the same protocols as a real one: to try plans and failures without root, and to test with."""
