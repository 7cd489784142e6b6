"""Training, distillation and measurement of rankers; each command is a file of this folder."""

import os

# Threads of OpenMP that spin while they wait lose most of the speed as soon as another process wants the cores. A
# library reads this when it is loaded, which is after this file.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
