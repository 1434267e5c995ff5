"""A run: teacher, student alone, distilled student, and the folder of their files."""
