package http

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// Addresses says where the handler may connect. Link-local addresses and the
// metadata services of clouds are always refused unless Allow names them; the
// receivers of a billing system mostly live on private addresses, so these are
// refused only on request.
type Addresses struct {
	// Allow, if not empty, lists the only addresses that may be connected to; no
	// refusal applies to them. Its entries, like those of Deny, are addresses or
	// prefixes such as 10.0.0.0/8.
	Allow []string
	Deny  []string // refused too
	// DenyPrivate refuses loopback, private, shared and reserved addresses.
	DenyPrivate bool
}

// guard judges the address that a connection is about to go to, after the name
// was resolved, so that no DNS answer gets around it.
type guard struct {
	allow, deny []netip.Prefix
	denyPrivate bool
}

// A blockedError is the guard's refusal.
type blockedError struct {
	addr netip.Addr
	why  string
}

func (e *blockedError) Error() string {
	return fmt.Sprintf("address %s is blocked: %s; if it is the receiver's, add it to the handler's allow list", e.addr, e.why)
}

func newGuard(a Addresses) (*guard, error) {
	g := &guard{denyPrivate: a.DenyPrivate}
	for _, list := range []struct {
		name string
		in   []string
		out  *[]netip.Prefix
	}{{"deny", a.Deny, &g.deny}, {"allow", a.Allow, &g.allow}} {
		for _, text := range list.in {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				addr, err := netip.ParseAddr(text)
				if err != nil || addr.Zone() != "" {
					return nil, fmt.Errorf("%s %q: want an address or a prefix such as 10.0.0.0/8", list.name, text)
				}
				p = netip.PrefixFrom(addr, addr.BitLen())
			}
			if p.Addr().Is4In6() {
				if p.Bits() < 96 {
					return nil, fmt.Errorf("%s %q: write it as an IPv4 prefix", list.name, text)
				}
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
			}
			*list.out = append(*list.out, p.Masked())
		}
	}
	return g, nil
}

// control is a net.Dialer's ControlContext.
func (g *guard) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("judge the address %s %q: %w", network, address, err)
	}
	return g.check(ap.Addr())
}

// check returns a *blockedError if addr may not be connected to. An IPv6 address
// that leads to an IPv4 one is judged as both.
func (g *guard) check(addr netip.Addr) error {
	addr = addr.WithZone("").Unmap()
	if contains(g.allow, addr) {
		return nil
	}
	if why := g.refusal(addr); why != "" {
		return &blockedError{addr, why}
	}
	for _, inner := range embedded(addr) {
		if why := g.refusal(inner); why != "" {
			return &blockedError{addr, fmt.Sprintf("it leads to %s, %s", inner, why)}
		}
	}
	if len(g.allow) > 0 {
		return &blockedError{addr, "not listed under allow"}
	}
	return nil
}

func (g *guard) refusal(addr netip.Addr) string {
	switch {
	case isMetadata(addr):
		return "the metadata service of a cloud"
	case addr.IsLinkLocalUnicast():
		return "link-local"
	case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "not the address of one host"
	case contains(g.deny, addr):
		return "listed under deny"
	case !g.denyPrivate:
		return ""
	case addr.IsLoopback():
		return "loopback"
	case addr.IsPrivate():
		return "private"
	case addr.IsUnspecified() || isReserved(addr):
		return "reserved"
	}
	return ""
}

func contains(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// isMetadata tells the services that hand credentials to whoever asks from
// inside a cloud machine and are not link-local, where the others are.
func isMetadata(addr netip.Addr) bool {
	switch addr.String() {
	case "fd00:ec2::254", // Amazon
		"fd20:ce::254",    // Google
		"100.100.100.200", // Alibaba
		"168.63.129.16",   // Azure
		"192.0.0.192":     // Oracle
		return true
	}
	return false
}

// isReserved tells what the IANA special-purpose registries list as not globally
// reachable, beside loopback, private and link-local.
func isReserved(addr netip.Addr) bool {
	if addr.Is4() {
		b := addr.As4()
		switch {
		case b[0] == 0,
			b[0] == 100 && b[1]&0xc0 == 64,           // shared, 100.64.0.0/10
			b[0] == 192 && b[1] == 0 && b[2] == 0,    // protocol assignments
			b[0] == 192 && b[1] == 0 && b[2] == 2,    // documentation
			b[0] == 198 && b[1]&0xfe == 18,           // benchmarks
			b[0] == 198 && b[1] == 51 && b[2] == 100, // documentation
			b[0] == 203 && b[1] == 0 && b[2] == 113,  // documentation
			b[0] >= 240:
			return true
		}
		return false
	}
	b := addr.As16()
	switch {
	case b[0] == 0x01 && b[1] == 0x00, // discard, 100::/64
		b[0] == 0xfe && b[1]&0xc0 == 0xc0,                            // site-local, fec0::/10
		b[0] == 0x20 && b[1] == 0x01 && b[2] == 0x0d && b[3] == 0xb8, // documentation
		b[0] == 0x3f && b[1] == 0xff && b[2]&0xf0 == 0,               // documentation, 3fff::/20
		b[0] == 0x5f && b[1] == 0x00:                                 // segment routing
		return true
	}
	return false
}

// embedded returns the IPv4 addresses that a 16-byte addr carries by the known
// ways of translating and tunnelling.
func embedded(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	four := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	zero := func(from, to int) bool { return !slices.ContainsFunc(b[from:to], func(c byte) bool { return c != 0 }) }
	switch {
	case b[0] == 0x00 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b && zero(4, 12): // NAT64, 64:ff9b::/96
		return []netip.Addr{four(12)}
	case b[0] == 0x00 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b && b[4] == 0 && b[5] == 1:
		// NAT64 of the site, 64:ff9b:1::/48: the address stands behind the 48 bits
		// (skipping octet 8), or at the end when the site uses a longer prefix.
		return []netip.Addr{netip.AddrFrom4([4]byte{b[6], b[7], b[9], b[10]}), four(12)}
	case b[0] == 0x20 && b[1] == 0x02: // 6to4, 2002::/16
		return []netip.Addr{four(2)}
	case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0: // Teredo: server, and client inverted
		return []netip.Addr{four(4), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})}
	case zero(0, 8) && b[8] == 0xff && b[9] == 0xff && b[10] == 0 && b[11] == 0: // SIIT, ::ffff:0:a.b.c.d
		return []netip.Addr{four(12)}
	case zero(0, 12) && !addr.IsUnspecified() && !addr.IsLoopback(): // IPv4-compatible
		return []netip.Addr{four(12)}
	case b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP
		return []netip.Addr{four(12)}
	}
	return nil
}
