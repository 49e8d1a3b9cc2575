package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"

	"go4.org/netipx"
	"gvisor.dev/gvisor/pkg/tcpip"
	"tailscale.com/envknob"
	"tailscale.com/net/dns"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/net/tsdial"
	"tailscale.com/tailcfg"
	"tailscale.com/tsd"
	"tailscale.com/types/ipproto"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/types/netmap"
	"tailscale.com/types/nettype"
	"tailscale.com/wgengine"
	"tailscale.com/wgengine/filter"
	"tailscale.com/wgengine/magicsock"
	"tailscale.com/wgengine/netstack"
	"tailscale.com/wgengine/router"
	"tailscale.com/wgengine/wgcfg/nmcfg"
)

// node is magicsock, WireGuard and netstack put together as Coder's programs do it, without a control plane: who the
// peers are and which relays there are is told from outside.
type node struct {
	private key.NodePrivate
	engine  wgengine.Engine
	magic   *magicsock.Conn
	stack   *netstack.Impl
	monitor *netmon.Monitor
	logf    logger.Logf

	mu      sync.Mutex
	netmap  *netmap.NetworkMap
	state   nodeState
	changed func(nodeState)
}

// nodeState is what others must know to reach this node.
type nodeState struct {
	Node             string             `json:"node"` // 64 hexadecimal digits, as all keys here
	Disco            string             `json:"disco"`
	Home             int                `json:"home"`
	Latencies        map[string]float64 `json:"latencies,omitempty"` // seconds
	Endpoints        []string           `json:"endpoints"`
	ForcedWebsockets map[int]string     `json:"forced_websockets,omitempty"`
}

// peer is another node, as a coordinator describes it.
type peer struct {
	Node      string   `json:"node"`
	Disco     string   `json:"disco"`
	Addresses []string `json:"addresses"`
	Home      int      `json:"home"`
	Endpoints []string `json:"endpoints"`
	KeepAlive bool     `json:"keep_alive"` // what Coder's clients set for agents; it begins the handshake at once
}

// services say what a connection to a port gets; nil refuses it.
type services func(port uint16) func(net.Conn)

// newNode starts a node with fresh keys. changed is called, one call at a time, with each new state.
func newNode(addresses []netip.Prefix, direct, verbose bool, serve services, changed func(nodeState)) (*node, error) {
	netns.SetEnabled(false) // no marks on sockets: there is no interface whose traffic they would have to avoid
	envknob.Setenv("TS_DEBUG_TRIM_WIREGUARD", "false")
	logf := logger.Discard
	if verbose {
		logf = log.Printf
	}
	monitor, err := netmon.New(logf)
	if err != nil {
		return nil, err
	}
	system := new(tsd.System)
	dialer := &tsdial.Dialer{Logf: logf}
	engine, err := wgengine.NewUserspaceEngine(logf, wgengine.Config{
		NetMon: monitor, Dialer: dialer, SetSubsystem: system.Set,
	})
	if err != nil {
		return nil, err
	}
	magic := system.MagicSock.Get()
	stack, err := netstack.Create(logf, system.Tun.Get(), engine, magic, dialer, system.DNSManager.Get())
	if err != nil {
		return nil, err
	}
	n := &node{
		private: key.NewNode(), engine: engine, magic: magic, stack: stack, monitor: monitor, logf: logf, changed: changed,
	}
	n.state = nodeState{
		Node:             n.private.Public().UntypedHexString(),
		Disco:            hexDisco(magic.DiscoPublicKey()),
		Endpoints:        []string{},
		ForcedWebsockets: map[int]string{},
	}
	n.netmap = &netmap.NetworkMap{
		NodeKey: n.private.Public(), PrivateKey: n.private, Addresses: addresses,
		SelfNode:     &tailcfg.Node{Key: n.private.Public(), Addresses: addresses, AllowedIPs: addresses},
		PacketFilter: allowed(),
	}
	stack.ProcessLocalIPs = true
	stack.GetTCPHandlerForFlow = func(_, to netip.AddrPort) (func(net.Conn), []tcpip.SettableSocketOption, bool) {
		return serve(to.Port()), nil, true
	}
	stack.GetUDPHandlerForFlow = func(_, to netip.AddrPort) (func(nettype.ConnPacketConn), bool) {
		return func(conn nettype.ConnPacketConn) {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}, true
	}
	if err := stack.Start(nil); err != nil {
		return nil, err
	}
	magic.SetBlockEndpoints(!direct)
	magic.SetDERPForcedWebsocketCallback(func(region int, reason string) {
		n.update(func(s *nodeState) { s.ForcedWebsockets[region] = reason })
	})
	engine.SetNetInfoCallback(func(info *tailcfg.NetInfo) {
		n.update(func(s *nodeState) { s.Home, s.Latencies = info.PreferredDERP, info.DERPLatency })
	})
	engine.SetStatusCallback(func(status *wgengine.Status, err error) {
		if err != nil {
			return // the engine is closing
		}
		endpoints := []string{}
		for _, endpoint := range status.LocalAddrs {
			endpoints = append(endpoints, endpoint.Addr.String())
		}
		n.update(func(s *nodeState) { s.Endpoints = endpoints })
	})
	var locals netipx.IPSetBuilder
	for _, address := range addresses {
		locals.AddPrefix(address)
	}
	local, err := locals.IPSet()
	if err != nil {
		return nil, err
	}
	engine.SetFilter(filter.New(n.netmap.PacketFilter, local, local, nil, logf))
	if err := magic.SetPrivateKey(n.private); err != nil {
		return nil, err
	}
	return n, n.setPeers(nil)
}

// allowed is the filter that Coder's programs use: every address, but only the protocols that they know.
func allowed() []filter.Match {
	everything := netip.MustParsePrefix("::/0")
	return []filter.Match{{
		IPProto: []ipproto.Proto{ipproto.TCP, ipproto.UDP, ipproto.ICMPv6, ipproto.SCTP},
		Srcs:    []netip.Prefix{everything},
		Dsts:    []filter.NetPortRange{{Net: everything, Ports: filter.PortRange{First: 0, Last: 65535}}},
	}}
}

func (n *node) update(change func(*nodeState)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.state)
	n.changed(n.state)
}

// setPeers makes these the only peers.
func (n *node) setPeers(peers []peer) error {
	nodes := make([]*tailcfg.Node, 0, len(peers))
	for i, p := range peers {
		one := &tailcfg.Node{
			ID: tailcfg.NodeID(i + 1), StableID: tailcfg.StableNodeID(p.Node), KeepAlive: p.KeepAlive,
			Endpoints: p.Endpoints, DERP: fmt.Sprintf("%s:%d", tailcfg.DerpMagicIP, p.Home),
			Hostinfo: (&tailcfg.Hostinfo{}).View(),
		}
		if err := one.Key.UnmarshalText([]byte("nodekey:" + p.Node)); err != nil {
			return err
		}
		if err := one.DiscoKey.UnmarshalText([]byte("discokey:" + p.Disco)); err != nil {
			return err
		}
		for _, text := range p.Addresses {
			address, err := netip.ParseAddr(text)
			if err != nil {
				return err
			}
			one.Addresses = append(one.Addresses, netip.PrefixFrom(address, address.BitLen()))
		}
		one.AllowedIPs = one.Addresses
		nodes = append(nodes, one)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	next := *n.netmap
	next.Peers = nodes
	n.netmap = &next
	n.engine.SetNetworkMap(&next)
	config, err := nmcfg.WGCfg(&next, n.logf, netmap.AllowSingleHosts, "")
	if err != nil {
		return err
	}
	err = n.engine.Reconfig(config, &router.Config{LocalAddrs: next.Addresses}, &dns.Config{}, &tailcfg.Debug{})
	if err == wgengine.ErrNoChanges {
		return nil
	}
	return err
}

func hexDisco(disco key.DiscoPublic) string {
	raw := disco.Raw32()
	return fmt.Sprintf("%x", raw[:])
}
