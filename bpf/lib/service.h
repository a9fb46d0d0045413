/* Services: frontend -> generation and count -> one slot at random. */

/* Point `to` at a backend when the destination is a service. Returns 0 or -DROP_*. */
static __always_inline int choose_backend(struct flow *f)
{
	struct frontend frontend = {
		.address = f->to.destination,
		.port = f->to.destination_port,
		.protocol = f->to.protocol,
	};
	/* Between reading the count and reading the slot, the last slot may go: once more, with the new count. */
#pragma unroll
	for (int attempt = 0; attempt < 2; attempt++) {
		struct service *service = services.lookup(&frontend);
		if (!service)
			return 0;
		struct slot slot = { .service = service->id, .generation = service->generation };
		__u32 count = service->count;
		f->service = slot.service;
		if (count == 0)
			return -DROP_NO_ENDPOINTS;
		slot.index = ((__u64)bpf_get_prandom_u32() * count) >> 32;
		struct backend *backend = slots.lookup(&slot);
		if (backend) {
			f->to.destination = backend->address;
			f->to.destination_port = backend->port;
			f->flags |= FLOW_NAT;
			return 0;
		}
	}
	return -DROP_NO_SLOT;
}

/* A pod that reaches itself must not see its own address as the client's, or it would answer past us: the service's
 * address stands in (the answer comes back to it, and to us). */
static __always_inline void source_hairpin(struct flow *f, const struct tuple *key)
{
	if ((f->flags & FLOW_NAT) && same_address(&f->to.destination, &f->to.source))
		f->to.source = key->destination;
}
