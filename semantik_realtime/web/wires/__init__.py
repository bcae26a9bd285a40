"""What the server says to a client: values in, frames out."""
