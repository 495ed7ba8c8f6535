"""The delivery contract's judge: from what devices asked, were answered and showed, and what the tables hold, to what broke.

Owns the form of a history and the verdict over it. Promises that equal histories get equal verdicts, and that each violation is
counted and told as a story. Never talks to a server, reads a clock or trusts an answer: tests, simulation and the command line
collect the facts, each in its own way, and all are judged here.
"""
