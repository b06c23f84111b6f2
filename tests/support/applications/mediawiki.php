<?php
// Runs MediaWiki from the command line, through its own classes:
//   php mediawiki.php FOLDER write NAME | read
// FOLDER: the unpacked package. MW_CONFIG_FILE is the path of LocalSettings.php.

use MediaWiki\MediaWikiServices;
use MediaWiki\Revision\SlotRecord;

[$_, $folder] = $argv;
array_splice($argv, 1, 1);
$_SERVER['argv'] = $argv;
require "$folder/maintenance/Maintenance.php";

class CastoreTests extends Maintenance {
    public function __construct() {
        parent::__construct();
        $this->addArg('action', 'write or read');
        $this->addArg('name', 'of what is written', false);
    }

    public function execute() {
        $services = MediaWikiServices::getInstance();
        if ($this->getArg(0) === 'write') {
            $this->write($services, $this->getArg(1));
        }
        $database = $this->getDB(DB_PRIMARY);
        $pages = [];
        foreach ($database->select('page', ['page_id'], [], __METHOD__, ['ORDER BY' => 'page_id']) as $row) {
            $page = $services->getWikiPageFactory()->newFromID($row->page_id);
            $revision = $page->getRevisionRecord();
            $pages[] = [
                $page->getTitle()->getPrefixedText(), $revision->getId(), $revision->getTimestamp(), $revision->getUser()->getName(),
                $revision->getComment()->text, md5($page->getContent()->getText()),
            ];
        }
        $found = [];
        $matches = $services->newSearchEngine()->searchText('zebra');
        foreach ($matches instanceof Status ? $matches->getValue() : $matches as $match) {
            $found[] = $match->getTitle()->getPrefixedText();
        }
        sort($found);
        $version = $database->tableExists('user_autocreate_serial') ? 'new' : 'old';
        echo json_encode(['version' => $version, 'pages' => $pages, 'found' => $found], JSON_THROW_ON_ERROR);
    }

    private function write(MediaWikiServices $services, string $name): void {
        foreach (["Über $name", "Template:$name", "User:$name"] as $at => $text) {
            $title = Title::newFromText($text);
            $updater = $services->getWikiPageFactory()->newFromTitle($title)->newPageUpdater(User::newSystemUser("Writer $name", ['steal' => true]));
            $body = "'''$name''' is a zebra; \\ \u{1F600} {{Template:$name}} [[Category:$name]]\n" . str_repeat("Line $at of $name''s page\n", 100);
            $updater->setContent(SlotRecord::MAIN, ContentHandler::makeContent($body, $title));
            $updater->saveRevision(CommentStoreComment::newUnsavedComment("written as $name"));
            if (!$updater->wasSuccessful()) {
                $this->fatalError("cannot write $text");
            }
        }
        DeferredUpdates::doUpdates();
    }
}

$maintClass = CastoreTests::class;
require RUN_MAINTENANCE_IF_MAIN;
