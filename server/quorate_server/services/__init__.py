"""The gRPC services. Thin: they check who calls and translate."""
