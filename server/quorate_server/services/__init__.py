"""The gRPC services: thin doors."""
