"""A cell of arms on the network: messages, who may send them, the server, and a client."""
