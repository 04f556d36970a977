// Checks what our ledger writes with the reference implementation, golang.org/x/mod/sumdb.
//
//	go run . VKEY CHECKPOINT ENTRIES PROOFS
//
// VKEY and CHECKPOINT are files of a bundle, ENTRIES its entries.jsonl.  A line of PROOFS is either
// "inclusion INDEX SIZE ROOT LEAF HASH..." or "consistency OLD NEW OLDROOT NEWROOT HASH...", hashes in base64.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func hashes(fields []string) (all []tlog.Hash) {
	for _, field := range fields {
		all = append(all, must(tlog.ParseHash(field)))
	}
	return all
}

func main() {
	log.SetFlags(0)
	read := func(at int) []byte { return must(os.ReadFile(os.Args[at])) }

	key := must(note.NewVerifier(strings.TrimSuffix(string(read(1)), "\n")))
	opened := must(note.Open(read(2), note.VerifierList(key)))
	lines := strings.Split(opened.Text, "\n")
	size := must(strconv.ParseInt(lines[1], 10, 64))
	root := must(tlog.ParseHash(lines[2]))
	fmt.Println("note", lines[0], size)

	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (found []tlog.Hash, err error) {
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	entries := bytes.SplitAfter(read(3), []byte("\n"))
	entries = entries[:len(entries)-1]
	for index, line := range entries {
		leaf := bytes.TrimSuffix(line, []byte("\n"))
		stored = append(stored, must(tlog.StoredHashes(int64(index), leaf, reader))...)
	}
	if int64(len(entries)) != size || must(tlog.TreeHash(size, reader)) != root {
		log.Fatal("the entries lead to another root")
	}
	fmt.Println("root", root)

	checked := 0
	for _, line := range strings.Split(strings.TrimSpace(string(read(4))), "\n") {
		fields := strings.Fields(line)
		a, b := must(strconv.ParseInt(fields[1], 10, 64)), must(strconv.ParseInt(fields[2], 10, 64))
		proof := hashes(fields[3:])
		var err error
		if fields[0] == "inclusion" {
			err = tlog.CheckRecord(proof[2:], b, proof[0], a, proof[1])
		} else {
			err = tlog.CheckTree(proof[2:], b, proof[1], a, proof[0])
		}
		if err != nil {
			log.Fatal(line, ": ", err)
		}
		checked++
	}
	fmt.Println("proofs", checked)
}
