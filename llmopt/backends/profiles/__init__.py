"""What each serving framework is asked, and how it answers: one small module per server."""
