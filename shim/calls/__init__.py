"""One request, from the call to the reply: the session, the lease, yielding, declared uses, the trace."""
