"""`keepwarm inspect`: what a GGUF file takes before it is loaded, and what earlier loads taught."""
