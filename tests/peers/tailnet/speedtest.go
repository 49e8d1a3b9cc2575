package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"

	"tailscale.com/net/speedtest"
)

// speedtestClient runs the test that Coder's command line client runs, against HOST:PORT, and prints the bytes and
// seconds of its whole.
func speedtestClient(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("need HOST:PORT and down or up")
	}
	direction := speedtest.Download
	if args[1] == "up" {
		direction = speedtest.Upload
	}
	results, err := speedtest.RunClient(direction, speedtest.MinDuration, args[0])
	if err != nil {
		return err
	}
	total := results[len(results)-1]
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"bytes":   total.Bytes,
		"seconds": total.Interval().Seconds(),
	})
}

// speedtestServer serves tests on a free port of 127.0.0.1, which it prints.
func speedtestServer() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	return speedtest.Serve(listener)
}
