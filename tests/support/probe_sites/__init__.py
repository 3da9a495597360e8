"""Counts in the kernel what passes a probe site of a program, to be compared with what the program did."""
