package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand"
	"net"
	"strings"
	"sync"
	"time"

	"tailscale.com/net/speedtest"
)

// The services of a node, the same as those of agent/testing/traffic.py: ports and lines are shared.
const (
	speedPort  = 3 // the agent's, see package speedtest
	echoPort   = 7
	sinkPort   = 9  // takes bytes until they end, then says `COUNT CRC32\n` and ends
	sourcePort = 19 // takes a line with a count, gives as many bytes, then says `COUNT CRC32\n` and ends
)

const block = 256 << 10

// stall is how long an exchange may make no progress at all.
const stall = 30 * time.Second

var noise = func() []byte {
	bytes := make([]byte, block)
	rand.New(rand.NewSource(1)).Read(bytes)
	return bytes
}()

func serve(port uint16) func(net.Conn) {
	switch port {
	case speedPort:
		return closing(speedtest.ServeConn)
	case echoPort:
		return closing(func(conn net.Conn) error {
			_, err := io.Copy(conn, conn)
			return err
		})
	case sinkPort:
		return closing(func(conn net.Conn) error {
			count, sum, err := drain(conn)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(conn, "%d %d\n", count, sum)
			return err
		})
	case sourcePort:
		return closing(func(conn net.Conn) error {
			var count int64
			if _, err := fmt.Fscanf(conn, "%d\n", &count); err != nil {
				return err
			}
			sum, err := fill(conn, count)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(conn, "%d %d\n", count, sum)
			return err
		})
	}
	return nil
}

func closing(service func(net.Conn) error) func(net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		_ = service(conn) // the other end notices by itself
	}
}

// drain reads to the end.
func drain(from io.Reader) (count int64, sum uint32, err error) {
	hash := crc32.NewIEEE()
	count, err = io.CopyBuffer(hash, struct{ io.Reader }{from}, make([]byte, block))
	return count, hash.Sum32(), err
}

// fill writes count bytes.
func fill(to io.Writer, count int64) (uint32, error) {
	hash := crc32.NewIEEE()
	for left := count; left > 0; {
		part := noise[:min(left, block)]
		if _, err := to.Write(part); err != nil {
			return 0, err
		}
		hash.Write(part)
		left -= int64(len(part))
	}
	return hash.Sum32(), nil
}

// dialer opens a connection to a node's port.
type dialer func(context.Context) (net.Conn, error)

// bulk moves bytes on several connections at once and checks that they arrived as they were sent. The seconds begin
// before the connections are there and end with the last answer.
func bulk(dial dialer, up bool, bytes int64, streams int) (seconds float64, err error) {
	one := download
	if up {
		one = upload
	}
	began := time.Now()
	var group sync.WaitGroup
	errs := make([]error, streams)
	for i := range streams {
		group.Add(1)
		go func() {
			defer group.Done()
			errs[i] = transfer(dial, func(conn net.Conn) error { return one(conn, bytes/int64(streams)) })
		}()
	}
	group.Wait()
	return time.Since(began).Seconds(), errors.Join(errs...)
}

func transfer(dial dialer, run func(net.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), stall)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return run(conn)
}

func upload(conn net.Conn, count int64) error {
	sum, err := fill(progress{conn}, count)
	if err != nil {
		return err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	return verdict(progress{conn}, count, sum)
}

func download(conn net.Conn, count int64) error {
	if _, err := fmt.Fprintf(conn, "%d\n", count); err != nil {
		return err
	}
	from := bufio.NewReaderSize(progress{conn}, block)
	received, sum, err := drain(io.LimitReader(from, count))
	if err != nil {
		return err
	}
	return verdict(from, received, sum)
}

// verdict compares with what the other end counted.
func verdict(from io.Reader, count int64, sum uint32) error {
	text, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	if said, here := strings.TrimSpace(string(text)), fmt.Sprintf("%d %d", count, sum); said != here {
		return fmt.Errorf("the other end counted %q, this end %q", said, here)
	}
	return nil
}

// progress fails when nothing moves for long.
type progress struct{ net.Conn }

func (p progress) Read(to []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return p.Conn.Read(to)
}

func (p progress) Write(from []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return p.Conn.Write(from)
}

// echo sends messages, each after the answer to the one before, and tells the seconds that each took.
func echo(dial dialer, size, count int, pause time.Duration) (trips []float64, err error) {
	err = transfer(dial, func(conn net.Conn) error {
		sent, back := noise[:size], make([]byte, size)
		for range count {
			began := time.Now()
			if _, err := (progress{conn}).Write(sent); err != nil {
				return err
			}
			if _, err := io.ReadFull(progress{conn}, back); err != nil {
				return err
			}
			trips = append(trips, time.Since(began).Seconds())
			if string(back) != string(sent) {
				return errors.New("what came back is not what was sent")
			}
			time.Sleep(pause)
		}
		return nil
	})
	return trips, err
}

// speed runs Tailscale's speed test and tells how many bytes it counted.
func speed(dial dialer, up bool, duration time.Duration) (bytes int, err error) {
	direction := speedtest.Download
	if up {
		direction = speedtest.Upload
	}
	err = transfer(dial, func(conn net.Conn) error {
		results, err := speedtest.RunClientWithConn(direction, duration, conn)
		for _, result := range results {
			if result.Total {
				bytes = result.Bytes
			}
		}
		return err
	})
	return bytes, err
}
