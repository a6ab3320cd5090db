"""The study of inheritance: do refinements of an inversion edit as well as its code alone?"""
