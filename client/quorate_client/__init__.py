"""The site's side: the daemon that takes part in studies, and the commands of its administrator."""

import os

# The transport's own lines are not in the form of the log. It reads this when it is imported; whoever needs the lines
# sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
