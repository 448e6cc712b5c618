"""The site's side: the daemon that takes part in studies, and the commands of its administrator."""
