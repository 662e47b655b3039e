// Somebody else's verifier: Go's golang.org/x/mod/sumdb, which shares no code with this project.
//
// It reads questions, one JSON object a line, and answers each with a line: "ok", or "no: " and why.
//   {"ask":"note","note":…,"keys":[…]}                     the note is signed by one of the keys and is a checkpoint
//   {"ask":"inclusion","note":…,"keys":[…],"index":…,"body":…,"proof":[…]}
//   {"ask":"consistency","old":{note},"note":…,"keys":[…],"proof":[…]}
// Bytes are base64.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type question struct {
	Ask   string   `json:"ask"`
	Note  []byte   `json:"note"`
	Old   []byte   `json:"old"`
	Keys  []string `json:"keys"`
	Index int64    `json:"index"`
	Body  []byte   `json:"body"`
	Proof [][]byte `json:"proof"`
}

type head struct {
	origin string
	size   int64
	root   tlog.Hash
}

// open verifies a note and reads the checkpoint in it.
func open(msg []byte, keys []string) (head, error) {
	var verifiers []note.Verifier
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return head{}, err
		}
		verifiers = append(verifiers, verifier)
	}
	opened, err := note.Open(msg, note.VerifierList(verifiers...))
	if err != nil {
		return head{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] == "" || lines[len(lines)-1] != "" {
		return head{}, errors.New("not a checkpoint")
	}
	if opened.Sigs[0].Name != lines[0] {
		return head{}, errors.New("the signature is not the log's")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return head{}, errors.New("not a size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return head{}, errors.New("not a root")
	}
	found := head{origin: lines[0], size: size}
	copy(found.root[:], root)
	return found, nil
}

func hashes(listed [][]byte) ([]tlog.Hash, error) {
	var found []tlog.Hash
	for _, one := range listed {
		if len(one) != tlog.HashSize {
			return nil, errors.New("not a hash")
		}
		var hash tlog.Hash
		copy(hash[:], one)
		found = append(found, hash)
	}
	return found, nil
}

func answer(asked question) error {
	newer, err := open(asked.Note, asked.Keys)
	if err != nil {
		return err
	}
	proof, err := hashes(asked.Proof)
	if err != nil {
		return err
	}
	switch asked.Ask {
	case "note":
		return nil
	case "inclusion":
		return tlog.CheckRecord(proof, newer.size, newer.root, asked.Index, tlog.RecordHash(asked.Body))
	case "consistency":
		older, err := open(asked.Old, asked.Keys)
		if err != nil {
			return err
		}
		if older.origin != newer.origin {
			return errors.New("two logs")
		}
		return tlog.CheckTree(proof, newer.size, newer.root, older.size, older.root)
	}
	return errors.New("unknown question")
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		var asked question
		err := json.Unmarshal(lines.Bytes(), &asked)
		if err == nil {
			err = answer(asked)
		}
		if err != nil {
			fmt.Fprintf(out, "no: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Fprintln(out, "ok")
		}
	}
}
