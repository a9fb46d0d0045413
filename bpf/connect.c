/* cgroup hooks: what a local process connects to, and what it then sees as its peer. The backend is written into the
 * socket, so that no packet needs translation.
 *
 * TCP only: a connected UDP socket has no end of connection; it would stay with a backend that goes, while a flow of
 * packets is cut over at once. */

static __always_inline bool is_tcp(struct bpf_sock_addr *ctx)
{
	return ctx->type == 1 /* SOCK_STREAM */ && ctx->protocol == IPPROTO_TCP;
}

static __always_inline void load_ipv6(struct address *to, struct bpf_sock_addr *ctx)
{
	to->word[0] = ctx->user_ip6[0];
	to->word[1] = ctx->user_ip6[1];
	to->word[2] = ctx->user_ip6[2];
	to->word[3] = ctx->user_ip6[3];
}

static __always_inline void store_ipv6(struct bpf_sock_addr *ctx, const struct address *from)
{
	ctx->user_ip6[0] = from->word[0];
	ctx->user_ip6[1] = from->word[1];
	ctx->user_ip6[2] = from->word[2];
	ctx->user_ip6[3] = from->word[3];
}

int connect4(struct bpf_sock_addr *ctx)
{
	struct tuple t = { .protocol = IPPROTO_TCP, .destination_port = ctx->user_port };
	if (!is_tcp(ctx))
		return 1;
	map_ipv4(&t.destination, ctx->user_ip4);
	if (redirect(ctx, &t)) {
		ctx->user_ip4 = t.destination.word[3];
		ctx->user_port = t.destination_port;
	}
	return 1;
}

/* An IPv4 address comes here mapped, as ours are. */
int connect6(struct bpf_sock_addr *ctx)
{
	struct tuple t = { .protocol = IPPROTO_TCP, .destination_port = ctx->user_port };
	if (!is_tcp(ctx))
		return 1;
	load_ipv6(&t.destination, ctx);
	if (redirect(ctx, &t)) {
		store_ipv6(ctx, &t.destination);
		ctx->user_port = t.destination_port;
	}
	return 1;
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	struct address peer;
	map_ipv4(&peer, ctx->user_ip4);
	struct socket *socket = shown_peer(ctx, &peer);
	if (socket) {
		ctx->user_ip4 = socket->asked.address.word[3];
		ctx->user_port = socket->asked.port;
	}
	return 1;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	struct address peer;
	load_ipv6(&peer, ctx);
	struct socket *socket = shown_peer(ctx, &peer);
	if (socket) {
		store_ipv6(ctx, &socket->asked.address);
		ctx->user_port = socket->asked.port;
	}
	return 1;
}
