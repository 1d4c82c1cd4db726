"""A decoder's forward pass in two calls of compiled code: hidden states, then logits of rows."""
