"""The API routes. Each file defines a group of related routes."""
