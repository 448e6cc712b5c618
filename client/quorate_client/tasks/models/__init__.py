"""The models that come with Quorate."""
