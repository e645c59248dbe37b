"""GreenMIM: the encoder, the decoder, the loss, and what they take of memory."""
