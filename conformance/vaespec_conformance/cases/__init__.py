"""Cases: what a subject is given, drawn or stored."""
