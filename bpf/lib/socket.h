/* Sockets that were connected to a backend in place of a service (connect.c): who may be, and what is known of them. */

/* Does somebody connect to a service? */
static __always_inline bool is_service(const struct tuple *t)
{
	int error;
	return frontend_of(t) || served_elsewise(t, &error);
}

/* Who connects: the address that the socket's namespace is known by. False: it is not known. */
static __always_inline bool client_of(struct bpf_sock_addr *ctx, struct tuple *t)
{
	struct netns key = { .cookie = bpf_get_netns_cookie(ctx), .ipv6 = !is_mapped(&t->destination) };
	struct address *known = namespaces.lookup(&key);
	if (!known)
		return false;
	t->source = *known;
	return true;
}

/* A socket of a namespace that we don't know asks for a service: its packets are translated, and the first of them to
 * come out of a wire of ours says which pod the namespace is (meet). */
static __always_inline void ask_who(struct bpf_sock_addr *ctx, const struct tuple *t)
{
	struct socket socket = {
		.namespace = bpf_get_netns_cookie(ctx),
		.asked = { .address = t->destination, .port = t->destination_port, .protocol = t->protocol },
	};
	__u64 cookie = bpf_get_socket_cookie(ctx);
	if (is_service(t))
		sockets.update(&cookie, &socket);
}

/* Point `t` at a backend, for good. False: let it be, for the packets' path knows better what to do or say: there is no
 * backend, or it is the client itself, which must see the service's address as its peer's (source_hairpin). */
static __always_inline bool shorten(struct bpf_sock_addr *ctx, struct tuple *t)
{
	struct flow f = { .to = *t }; /* no draft: packets of this CPU may come in between */
	struct socket socket = {
		.asked = { .address = t->destination, .port = t->destination_port, .protocol = t->protocol },
	};
	/* The port is not chosen yet; it spreads a pod's connections over the slots of a consistent set. */
	f.to.source_port = bpf_get_prandom_u32();
	if (choose_backend(&f, HOOK_FROM_POD) || !(f.flags & FLOW_NAT))
		return false;
	if (same_address(&f.to.destination, &t->source))
		return false;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	socket.namespace = bpf_get_netns_cookie(ctx);
	socket.set = f.service;
	socket.given.address = f.to.destination;
	socket.given.port = f.to.destination_port;
	if (sockets.update(&cookie, &socket))
		return false;
	struct address any = any_address(&t->destination);
	if (same_address(&t->source, &any)) /* the node, whose packets have no flow to be counted in */
		flush(&f, NULL, t, true);
	t->destination = f.to.destination;
	t->destination_port = f.to.destination_port;
	return true;
}

/* A socket connects to t->destination. True: to another one now. */
static __always_inline bool redirect(struct bpf_sock_addr *ctx, struct tuple *t)
{
	/* 0.0.0.0 and :: mean this machine to a socket, and a NodePort to `services`. */
	struct address any = any_address(&t->destination);
	if (same_address(&t->destination, &any))
		return false;
	if (client_of(ctx, t))
		return shorten(ctx, t);
	ask_who(ctx, t);
	return false;
}

/* What a socket's owner wants to see as its peer: what it asked for, as long as the peer is what it got for it. */
static __always_inline struct socket *shown_peer(struct bpf_sock_addr *ctx, const struct address *peer)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct socket *socket = sockets.lookup(&cookie);
	if (!socket || socket->given.port != (__be16)ctx->user_port || !same_address(&socket->given.address, peer))
		return NULL;
	return socket;
}

/* The first packet of a TCP connection that a pod of ours opens, in `f`. A shortened one counts for its service as any
 * other. From one that asks who it is (the kernel keeps a packet's socket across a veth: commit 9c4c325252c5, 4.19), we
 * learn the namespace: only what is right at the wire's end can be seen here, for routing lets go of the socket. */
static __always_inline void meet(struct __sk_buff *skb, struct flow *f, const struct tuple *t)
{
	__u64 cookie = t->protocol == IPPROTO_TCP ? bpf_get_socket_cookie(skb) : 0;
	struct socket *socket = cookie ? sockets.lookup(&cookie) : NULL;
	if (!socket)
		return;
	if (socket->given.port) {
		if (!f->service && socket->given.port == t->destination_port &&
		    same_address(&socket->given.address, &t->destination))
			f->service = socket->set;
		return;
	}
	struct netns key = { .cookie = socket->namespace, .ipv6 = !is_mapped(&t->source) };
	struct address address = t->source;
	namespaces.update(&key, &address);
	sockets.delete(&cookie);
}
