"""The parts of the Python model ``student``. Pairs wait in ``scheduler``, ``pair_scorer`` lays out those of a call, and
one of the engines scores the rows.

Imports are relative: Triton loads this folder as it lies in the model's own, and the builders as a part of the project.
"""
