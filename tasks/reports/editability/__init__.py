"""The study of editability: does SNCD predict how well codes can be edited?"""
