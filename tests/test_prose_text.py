"""prepare_prose's text: normalised paragraphs, HTML, man pages, POD, and the readers of the sets."""

import gzip
import struct
import sys
import zlib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import _prose  # noqa: E402
import _prose_text as text  # noqa: E402

# ---- paragraphs

@pytest.mark.parametrize("raw, expected", [
    ("“It’s  late,”\nhe said…", "\"It's late,\" he said..."),
    ("freedom -- or not--ends", "freedom — or not—ends"),
    ("-- Yes, sir", "— Yes, sir"),
    ("give --force or -f", "give --force or -f"),
    ("it was . . . late", "it was ... late"),
    ("see https://example.org/a (http://example.org/b), and mail <a.b@example.org>.", "see, and mail."),
    ("call random() with f(x)", "call random() with f(x)"),
    ("a word , and ( another ) .", "a word, and (another )."),
    ("_first_ and *second*, not __init__ or a*b*c", "first and second, not __init__ or a*b*c"),
    ("• an item", "an item"),
    ("cafe\u0301 so\u00adft \ufeff", "caf\u00e9 soft"),
])
def test_clean(raw, expected):
    assert text.clean(raw) == expected == text.clean(expected)


@pytest.mark.parametrize("paragraph, min_words, good", [
    ("This is a sentence of seven words.", 6, True),
    ("This is a sentence of seven words.", 8, False),
    ("Table of the contents of this book", 6, False),       # no mark at its end
    ("a line without any mark at its end, but with enough words in it to pass", 6, True),
    ("x = y + 1; z[0] = f(a, b) / 2; return -1;", 3, False),
    ("0x10 0x20 0x30 0x40 0x50 0x60.", 3, False),
    ("foo_bar baz_qux FOO_BAR a.b.c d->e f::g is it.", 3, False),
    ("Это предложение написано на русском языке.", 3, False),
    ("\"Yes,\" she said.", 1, True),
    ("---", 1, False),
])
def test_is_prose(paragraph, min_words, good):
    assert text.is_prose(paragraph, min_words) is good


def test_unwrap():
    assert list(text.unwrap(["", "one", "  two", " ", "", "three"])) == ["one two", "three"]


def test_html_blocks():
    page = """<head><title>T</title></head><body><div class="navheader">Prev <div>Next</div></div>
        <nav>menu</nav><main role="main"><h1>Title<a class="headerlink" href="#">¶</a></h1>
        <p>One &amp; <b>two</b>,<br>three.</p>text <pre>code <pre>more</pre></pre>
        <table><tr><td>cell</td></tr></table><ul><li>item</li><li><p>other</p></li></ul>
        <dl><dt class="sig sig-object">f(x)</dt><dd>Return <code>x</code>.</dd></dl></main></body>"""
    blocks = text.html_blocks(page)
    assert blocks == [(True, "Title"), (False, "One & two, three."), (False, "text"), (False, "item"),
                      (False, "other"), (False, "Return x.")]
    assert text.html_blocks("<body><p>before</p><div id='A'><p>after</p>", "id='A'") == [(False, "after")]


def test_man_paragraphs():
    page = r'''.\" a licence
.TH open 2 2023-01-01 "Linux"
.SH NAME
open \- open a file
.SH DESCRIPTION
The
.BR open ()
call opens \fIa file\fP\-descriptor
.RI ( """" path """" ).\" not this
.PP
.EX
int fd;
.EE
An empty line ends

a paragraph \(em always.
.TP
.B O_APPEND
The file is appended.
.TP
.BI "int open(const char *" path );
Signatures go.
.SH SEE ALSO
.BR close (2)
.SH NOTES
.nf
code
.fi
The end.'''
    assert text.man_paragraphs(page) == [
        'The open() call opens a file-descriptor ("path").', "An empty line ends", "a paragraph — always.",
        "O_APPEND: The file is appended.", "Signatures go.", "The end."]


def test_pod_paragraphs():
    page = """=head1 NAME

A paragraph with C<code>, B<bold I<both>> and
L<a link|perlop/"x">, L<perlfunc/open>.X<index>

    verbatim(1);

=over 4

=item * E<lt>tagE<gt> is an item

=back

=begin html

<p>not this</p>

=end html

The last C<< $a <=> $b >> one.

=cut
"""
    assert text.pod_paragraphs(page) == ["A paragraph with code, bold both and a link, perlfunc open.",
                                         "<tag> is an item", "The last $a <=> $b one."]


# ---- readers

@pytest.mark.parametrize("tagged, expected", [
    ("``/`` All/ql right/rb ''/'' ,/, Wilson/np said/vbd ./.", '"All right," Wilson said.'),
    ("``/`` Who/wps ''/'' ?/. ?/.", '"Who?"'),
    ("It/pps (/( or/cc 1/2/cd )/) costs/vbz $/$ 5/cd --/-- no/at ;/. ;/.", "It (or 1/2) costs $5 -- no;"),
    ("``/`` Natural/jj-hl causes/nns-hl ''/'' ", ""),
    ("we/ppss need/vb **zg/nn of/in it/ppo", "we need of it"),
])
def test_untag(tagged, expected):
    assert _prose.untag(tagged) == expected


def test_read_brown():
    content = b"\n\n\tOne/cd is/bez ./.\nTwo/cd are/ber ./.\n\n\n\tThree/cd ./.\n"
    (unit,) = _prose.read_brown([("package/ca01", content)])
    assert unit[0] == "ca01" and [line for line in unit[1] if line] == ["One is. Two are.", "Three."]


def sword_module(*testaments):
    """The files of a zText module: each testament one block of entries."""
    files = []
    for name, verses in zip(("ot", "nt"), testaments):
        block, index = b"", struct.pack("<IIH", 0, 0, 0)        # an empty entry first, as modules have it
        for verse in verses:
            index += struct.pack("<IIH", 0, len(block), len(verse.encode()))
            block += verse.encode()
        packed = zlib.compress(block)
        files += [(f"web/{name}.bzv", index), (f"web/{name}.bzz", packed),
                  (f"web/{name}.bzs", struct.pack("<III", 0, len(packed), len(block)))]
    return files


OLD = ["<div type='x'/>A preface.", '<chapter n="1" osisID="Gen.1" sID="Gen.1"/>',
       '<w lemma="a">In</w> the beginning God<note placement="foot">A <i>note</i>.</note><w>made</w> it. ',
       'It was good.<div eID="g1" type="x-p"/>', '<title>Light</title>“Let there be light,” he said. ',
       '<chapter n="2" osisID="Gen.2" sID="Gen.2"/>', "The second chapter. ",
       '<div type="book" osisID="Exod"/>About Exodus.']


def test_read_bible():
    units = dict(_prose.read_bible(sword_module(OLD, ['<chapter osisID="Matt.1" sID="x"/>', "A book."])))
    assert list(units) == ["Gen.1", "Gen.2", "Matt.1"]
    assert [part for part in units["Gen.1"] if part] == ["In the beginning God made it. It was good.",
                                                         "“Let there be light,” he said."]
    assert units["Gen.2"] == ["The second chapter."] and units["Matt.1"] == ["A book."]


def r_database(*vectors):
    """An R lazy-load database of character vectors."""
    database = b""
    for strings in vectors:
        data = b"X\n" + struct.pack(">iii", 3, 262656, 197888) + struct.pack(">ii", 16, len(strings))
        for string in strings:
            data += struct.pack(">Ii", 0x00040009, len(string)) + string.encode()
        database += struct.pack(">I", len(data)) + zlib.compress(data)
    return database


def test_read_austen():
    first = ["EMMA", "by Jane", "CHAPTER I", "", "Emma was", "_very_ clever.", "", "The end.", "CHAPTER II", "More."]
    second = ["PERSUASION", "Chapter 1", "", "Sir Walter."]
    units = list(_prose.read_austen([("Rdata.rdb", r_database(first, second))]))
    assert units == [("EMMA 1", ["Emma was very clever.", "The end."]), ("EMMA 2", ["More."]),
                     ("PERSUASION 1", ["Sir Walter."])]


def test_read_jargon(monkeypatch):
    monkeypatch.setattr(_prose, "ENTRIES_WORDS", 1)
    content = gzip.compress("""
                      Part I. Introduction

   This collects slang of
   {hacker}s.

                      Glossary

   │ box │

   :foo: /foo/ interj.

   1. A sample {name}.

   2. Another.

   :empty:

   :bar:  n.

   Two.
""".encode())
    assert list(_prose.read_jargon([("jargon.txt.gz", content)])) == [
        ("This collects slang of hackers.", ["This collects slang of hackers."]),
        ("foo", ["foo: 1. A sample name.", "2. Another."]), ("bar", ["bar: Two."])]


def test_read_foldoc():
    content = gzip.compress(b"""00-database-info
   Not this text at all, it is about the file.
abbrev%%%abbreviation

   <jargon, text> /uh-breev'/ or /uh-brev'/ The common {abbreviation}
   for "abbreviation" in print.

      code here;

   [{Jargon File}]

   (1994-11-07)

abc

   {ABC}

two senses

   1. <unit> A unit of something that has a name.

   2. <chip> A chip.
""")
    units = list(_prose.read_foldoc([("foldoc.dict.dz", content)]))
    assert units == [("abbrev", ['abbrev: The common abbreviation for "abbreviation" in print.',
                                 "two senses: 1. A unit of something that has a name.", "2. A chip."])]


def test_read_wordnet(monkeypatch):
    monkeypatch.setattr(_prose, "ENTRIES_WORDS", 5)
    content = b"""  1 a licence | with a bar
00001740 03 n 02 land_line 0 landline 0 001 @ 04402057 n 0000 | a telephone line that travels
00530354 00 s 01 blushing(a) 0 001 & 00529266 a 0000 | having red cheeks; "a blushing boy!"
"""
    assert list(_prose.read_wordnet([("usr/data.noun", content)])) == [
        ("noun land line, landline", ["land line, landline: a telephone line that travels."]),
        ("noun blushing", ['blushing: having red cheeks; "a blushing boy!".'])]


def test_html_readers():
    page = b"<body><h1>A</h1><p>one</p><p>A.1.2 A line of contents</p><h2>B</h2><p>two</p></body>"
    pages = [("usr/share/doc/x/html/a/b.html", page)]
    assert list(_prose.html_reader(sections=True)(pages)) == [("a/b.html 0", ["one"]), ("a/b.html 1", ["two"])]
    assert list(_prose.html_reader()(pages)) == [("a/b.html 0", ["one", "two"])]


def test_latin_1_files_are_read():
    assert _prose.utf8("a", "é".encode("latin-1")) == "é" == _prose.utf8("a.gz", gzip.compress("é".encode()))
