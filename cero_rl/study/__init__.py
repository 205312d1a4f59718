"""Paired-seed studies of allocators and learners in real training: a file says what runs, a
finished run is a line of results, and the tables say what seeds allow to be said."""
