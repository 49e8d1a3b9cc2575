package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
)

// request is one line of standard input; Do says what it is about and which other fields matter.
//
//	map        DERPMap                    use these relays
//	peers      Peers                      know these peers and no others
//	options    Direct                     allow or forbid direct paths
//	bulk       To Up Bytes Streams        move bytes to the sink's or from the source's port
//	echo       To Network Size Count Pause  send messages to the echo's port
//	speedtest  To Up Duration             Tailscale's own, at the agent's port for it
//	ping       To Kind                    "disco" or "TSMP"; To is an address
type request struct {
	ID       int              `json:"id"`
	Do       string           `json:"do"`
	DERPMap  *tailcfg.DERPMap `json:"derp_map"`
	Peers    []peer           `json:"peers"`
	Direct   bool             `json:"direct"`
	To       string           `json:"to"`
	Network  string           `json:"network"`
	Up       bool             `json:"up"`
	Bytes    int64            `json:"bytes"`
	Streams  int              `json:"streams"`
	Size     int              `json:"size"`
	Count    int              `json:"count"`
	Pause    float64          `json:"pause"`    // seconds after each
	Duration float64          `json:"duration"` // seconds
	Kind     string           `json:"kind"`
}

// answer is one line of standard output: to the request of that ID, or without one a new state of the node.
type answer struct {
	ID       int        `json:"id,omitempty"`
	Error    string     `json:"error,omitempty"`
	State    *nodeState `json:"state,omitempty"`
	Seconds  float64    `json:"seconds,omitempty"`
	Trips    []float64  `json:"trips,omitempty"` // seconds
	Bytes    int        `json:"bytes,omitempty"`
	Endpoint string     `json:"endpoint,omitempty"` // ip:port; empty where the relay is used
	Region   int        `json:"region,omitempty"`
}

// runNode obeys standard input until it ends.
func runNode(arguments []string) error {
	flags := flag.NewFlagSet("node", flag.ExitOnError)
	list := flags.String("addresses", "", "own addresses, separated by commas")
	direct := flags.Bool("direct", true, "allow direct paths from the beginning")
	websockets := flags.Bool("websocket", false, "reach relays by WebSocket only")
	verbose := flags.Bool("verbose", false, "log to standard error")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	var addresses []netip.Prefix
	for _, text := range strings.Split(*list, ",") {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		addresses = append(addresses, netip.PrefixFrom(address, address.BitLen()))
	}
	var mu sync.Mutex
	output := json.NewEncoder(os.Stdout)
	say := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		if err := output.Encode(a); err != nil {
			fail(err)
		}
	}
	n, err := newNode(addresses, *direct, *verbose, serve, func(state nodeState) { say(answer{State: &state}) })
	if err != nil {
		return err
	}
	defer n.monitor.Close()
	n.magic.SetDERPForceWebsockets(*websockets)
	n.update(func(*nodeState) {}) // the keys can be known from the beginning

	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<20)
	for input.Scan() {
		var r request
		if err := json.Unmarshal(input.Bytes(), &r); err != nil {
			return err
		}
		obey := func() {
			a, err := n.obey(r)
			if a.ID = r.ID; err != nil {
				a.Error = err.Error()
			}
			say(a)
		}
		switch r.Do {
		case "map", "peers", "options":
			obey() // in the order in which they came
		default:
			go obey()
		}
	}
	return input.Err()
}

func (n *node) obey(r request) (answer, error) {
	switch r.Do {
	case "map":
		n.engine.SetDERPMap(r.DERPMap)
		return answer{}, nil
	case "peers":
		return answer{}, n.setPeers(r.Peers)
	case "options":
		n.magic.SetBlockEndpoints(!r.Direct)
		return answer{}, nil
	case "bulk":
		dial, err := n.dialer("tcp", r.To)
		if err != nil {
			return answer{}, err
		}
		seconds, err := bulk(dial, r.Up, r.Bytes, r.Streams)
		return answer{Seconds: seconds}, err
	case "echo":
		dial, err := n.dialer(r.Network, r.To)
		if err != nil {
			return answer{}, err
		}
		trips, err := echo(dial, r.Size, r.Count, time.Duration(r.Pause*float64(time.Second)))
		return answer{Trips: trips}, err
	case "speedtest":
		dial, err := n.dialer("tcp", r.To)
		if err != nil {
			return answer{}, err
		}
		bytes, err := speed(dial, r.Up, time.Duration(r.Duration*float64(time.Second)))
		return answer{Bytes: bytes}, err
	case "ping":
		return n.ping(r.To, tailcfg.PingType(r.Kind))
	}
	return answer{}, fmt.Errorf("unknown request %q", r.Do)
}

func (n *node) dialer(network, to string) (dialer, error) {
	target, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (net.Conn, error) {
		if network == "udp" {
			return n.stack.DialContextUDP(ctx, target)
		}
		return n.stack.DialContextTCP(ctx, target)
	}, nil
}

func (n *node) ping(to string, kind tailcfg.PingType) (answer, error) {
	address, err := netip.ParseAddr(to)
	if err != nil {
		return answer{}, err
	}
	results := make(chan *ipnstate.PingResult, 1)
	n.engine.Ping(address, kind, func(result *ipnstate.PingResult) { results <- result })
	select {
	case result := <-results:
		if result.Err != "" {
			return answer{}, fmt.Errorf("%s: %s", to, result.Err)
		}
		return answer{Seconds: result.LatencySeconds, Endpoint: result.Endpoint, Region: result.DERPRegionID}, nil
	case <-time.After(5 * time.Second):
		return answer{}, fmt.Errorf("%s: no answer within 5 s", to)
	}
}
