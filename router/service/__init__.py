"""The gRPC services that applications and operators call."""
