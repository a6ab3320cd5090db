"""How an archive comes to be: runs and evaluations planned, shared out, and published once."""
